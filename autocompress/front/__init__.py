"""Which candidates are worth keeping: dominance, hypervolume, and policies that pick one."""
