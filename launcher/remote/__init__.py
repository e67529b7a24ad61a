"""Commands on another machine over ssh, and copies of its results."""
