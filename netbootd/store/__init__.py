"""The state folder: its layout, generations of images, downloads, locks, and the database of what was seen."""
