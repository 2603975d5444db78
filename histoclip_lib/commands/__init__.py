"""What the command line needs besides the library: what it prints, and how it ends."""
