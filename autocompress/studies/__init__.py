"""Study files that ship with autocompress."""
