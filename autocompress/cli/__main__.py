"""``python -m autocompress.cli``: the same as the command ``autocompress``."""

from autocompress.cli import main

main()
