"""The image builder: catalog, download, verify, decompress, read, export, patch, publish."""
