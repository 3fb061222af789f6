"""Index backends, one file each, and the folder that holds their segments."""
