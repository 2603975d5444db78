"""What `histoclip --help` says; a paragraph is wrapped unless its first line is a backspace."""

GENERAL = """Score, train and report HistoCLIP on a data set.

A parameter file names the data, the frozen backbone and how the head is trained. A run executes five notebooks with
it and writes their pages to reports/NAME/; reports/index.html gathers all runs.

\b
  histoclip check params/demo.yaml    is it right, and what would it take?
  histoclip run params/demo.yaml      do it; interrupted, it goes on later
  histoclip table                     all runs beside the paper's Table I
  histoclip show demo                 one run
"""
EXIT_CODES = """\b
Exit codes: 0 all went well; 1 a run or its data failed;
2 a parameter file, name or option cannot be used; 130 interrupted.

Paths and tables go to standard output, progress and errors to standard error. NO_COLOR and COLUMNS are respected.
"""
RUN = """\b
Examples:
  histoclip run params/demo.yaml
  histoclip run params/*.yaml --reports /data/reports
  histoclip run params/demo.yaml --force
  histoclip run params/grid.yaml --jobs 4
  histoclip run params/*.yaml --scheduler tcp://10.0.0.1:8786
"""
CHECK = """\b
Example:
  histoclip check params/pannuke.yaml && histoclip run params/pannuke.yaml
"""
TABLE = """\b
Examples:
  histoclip table
  histoclip table --format csv > table.csv
"""
SHOW = """\b
Examples:
  histoclip show demo
  histoclip show demo --open
"""
CACHE = """\b
Examples:
  histoclip cache
  histoclip cache --prune 30
"""
