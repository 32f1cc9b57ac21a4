"""Official data sets, from archives or folders to the layouts of docs/data.md."""
