"""PanNuke: nuclei of five classes in 19 tissues, as arrays or as parquet files."""
