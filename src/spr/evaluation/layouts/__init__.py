"""The layouts of benchmark files: which are known, how a file's layout is recognised, and one reader per layout."""
