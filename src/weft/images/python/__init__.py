"""python3-11: the root file system that functions of the runtime python3.11 see."""
