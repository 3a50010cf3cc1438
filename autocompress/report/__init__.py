"""What a study found, for people: one self-contained page, and the terminal."""
