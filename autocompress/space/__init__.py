"""What may be searched: choices, their YAML form, and the way from parameters to a physical plan and back."""
