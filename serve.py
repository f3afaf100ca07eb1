"""Serve a finished run over HTTP: ``python serve.py --model-dir RUN``, then http://127.0.0.1:8000.

A bundle of ``tools.export`` works as well: ``--bundle DIR``. docs/deploy.md has examples.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from support.command_line import positive, run_command
from tools.command import add_classes, add_common, quietly, read_names

if TYPE_CHECKING:
    import numpy as np

    from deploy.service import Model

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def port(text: str) -> int:
    """Read the number of a port, as the type of an argument; 0 is any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: use 0 to 65535")
    return int(text)


def milliseconds(text: str) -> float:
    """Read a time from 0 on, as the type of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of milliseconds, 0 to 10000")
    return value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Label pictures that are sent over HTTP, or dropped on a page.",
        epilog="docs/deploy.md has examples.",
    )
    add = parser.add_argument
    add("--model-dir", metavar="RUN", help="output folder of a training run")
    add("--bundle", metavar="DIR", help="bundle that tools.export wrote, in place of a run")
    add_classes(parser)
    helped = "address (default: 127.0.0.1, this machine only; 0.0.0.0: everybody who reaches it)"
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=helped)
    add("--port", type=port, default=8000, help="port; 0 is any free one (default: 8000)")
    add("--max-images", type=positive, default=16, metavar="N", help="pictures per request (16)")
    add("--max-mb", type=positive, default=10, metavar="MB", help="size of a picture (10)")
    helped = "pixels of a picture, in millions (50)"
    add("--max-megapixels", type=positive, default=50, metavar="N", help=helped)
    add("--max-batch", type=positive, default=16, metavar="N", help="pictures per batch (16)")
    helped = "time that a picture waits for others to go with, in ms (2)"
    add("--max-wait-ms", type=milliseconds, default=2.0, metavar="MS", help=helped)
    helped = "pictures that may wait; more are turned away (256)"
    add("--max-waiting", type=positive, default=256, metavar="N", help=helped)
    add_common(parser)
    return parser


def load(args: argparse.Namespace) -> Model:
    """Load what the command line names.

    Raises:
        ValueError: it names neither a run nor a bundle, or both.
    """
    if (args.model_dir is None) == (args.bundle is None):
        raise ValueError("give either --model-dir RUN, or --bundle DIR")
    names = None if args.classes is None else read_names(args.classes)
    return load_run(args, names) if args.bundle is None else load_bundle(args, names)


def load_bundle(args: argparse.Namespace, names: list[str] | None) -> Model:
    """Load a bundle.

    Raises:
        FileNotFoundError: no such bundle.
        ValueError: options that do not go with it, or classes that it cannot tell apart.
    """
    if args.load_epoch or args.backbone or args.device:
        raise ValueError("--load-epoch, --backbone and --device go with --model-dir")
    if not Path(args.bundle, "bundle.json").is_file():
        raise FileNotFoundError(
            f"{args.bundle} is no bundle, it has no bundle.json: python -m tools.export RUN "
            "--bundle DIR writes one"
        )
    from deploy import need

    need("--bundle", "onnxruntime")

    from deploy.service import Model
    from deploy.standalone.bundle import Bundle

    bundle = Bundle(args.bundle)
    if names is not None:
        bundle.set_classes(names)
    notes = bundle.notes
    info = {
        "served": "bundle",
        "method": notes["method"],
        "backbone": notes["backbone"],
        "precision": notes["image_encoder"]["precision"],
        "device": bundle.session.get_providers()[0].removesuffix("ExecutionProvider").lower(),
        "side": notes["preprocessing"]["crop"],
    }
    return Model(bundle.labels, bundle.read, bundle.probabilities, info)


def load_run(args: argparse.Namespace, names: list[str] | None) -> Model:
    """Load a run; one with a vision transformer has an attention map."""
    from trainers import Predictor

    with quietly(args):
        predictor = Predictor.load(
            args.model_dir, names, args.load_epoch, args.device, args.backbone
        )

    import torch

    from adaptation.starts import clip_widths
    from deploy.service import Model
    from tools.attention import patch_map, token_weights

    def read(picture) -> np.ndarray:
        return predictor.read(picture).numpy()

    def probabilities(pictures: np.ndarray) -> np.ndarray:
        with quietly(args):
            return predictor.probabilities(torch.from_numpy(pictures)).numpy()

    def attention(picture: np.ndarray) -> list[list[float]]:
        (rows,) = token_weights(predictor, torch.from_numpy(picture)[None])
        return patch_map(rows, "prompted").tolist()

    cfg = predictor.cfg
    info = {
        "served": "run",
        "method": cfg.TRAINER.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "precision": predictor.model.precision,
        "device": predictor.device.type,
        "side": list(cfg.INPUT.SIZE),
    }
    has_tokens = bool(clip_widths(predictor.model.clip).vision_layers)
    maps = attention if has_tokens else None
    return Model(predictor.classnames, read, probabilities, info, maps)


def listen(host: str, number: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        OSError: the address is not of this machine, or the port is taken; says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, number), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"cannot listen on {host}, port {number}: {getattr(error, 'strerror', None) or error}; "
            "choose another --host or --port (0 is any free one)"
        ) from error
    # connections inherit it: an answer in two parts would wait 40 ms for the client's receipt
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def serve(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM; requests that have begun are answered."""
    from deploy import need

    need("serve.py", "fastapi", "uvicorn", "multipart")
    if args.max_waiting < args.max_images:
        raise ValueError(
            f"--max-waiting is {args.max_waiting}, less than the pictures of one request "
            f"(--max-images {args.max_images}): raise it"
        )
    model = load(args)

    import uvicorn

    from deploy.service import Limits, build_app

    limits = Limits(
        picture_bytes=args.max_mb * 1_000_000,
        pictures=args.max_images,
        pixels=args.max_megapixels * 1_000_000,
        max_batch=args.max_batch,
        max_wait=args.max_wait_ms / 1000,
        max_waiting=args.max_waiting,
    )
    local = args.host in LOOPBACK
    app = build_app(model, limits, LOOPBACK if local else None)
    level = "info" if args.verbose else "warning"
    config = uvicorn.Config(app, log_level=level, timeout_graceful_shutdown=10)
    with listen(args.host, args.port) as listening:
        shown = f"[{args.host}]" if ":" in args.host else args.host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        what = f"{model.info['method']}, {len(model.labels)} classes"
        print(f"Serving {what} on {address} (Ctrl-C ends it)", flush=True)
        # uvicorn raises the signal again once it has ended
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listening])
    print("ended", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, or 2 for what cannot be done."""
    return run_command(build_parser(), serve, argv)


if __name__ == "__main__":
    sys.exit(main())
