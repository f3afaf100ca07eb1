"""Optional parts that save time or memory and change no result beyond rounding."""
