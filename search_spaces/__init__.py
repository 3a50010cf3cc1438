"""Search spaces that ship with autocompress."""
