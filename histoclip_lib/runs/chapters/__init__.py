"""What each notebook of a run shows: a module for each, its class's methods the last lines of the notebook's cells."""
