"""Files that are copied into bundles; they import none of ours and run without PyTorch."""
