"""One file a URI scheme. The file name is the scheme."""
