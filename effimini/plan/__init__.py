"""What a run will take on this machine, before it is started: the command ``effimini plan``."""
