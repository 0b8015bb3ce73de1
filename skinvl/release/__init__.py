"""An adapter becomes a merged model, and a repository of the hub."""
