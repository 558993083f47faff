"""Drawing row after row: what is asked, the lanes that share a row, what a reader is told."""
