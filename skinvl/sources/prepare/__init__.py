"""Raw rows and images become the files of a source, in parallel and whole."""
