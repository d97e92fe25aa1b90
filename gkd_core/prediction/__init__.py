"""Many pictures through a finished model into a table: `gkd predict … -o`. Imports neither torch nor mlflow."""
