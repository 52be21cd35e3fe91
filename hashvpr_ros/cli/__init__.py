"""The command `hashvpr`: one file a command."""
