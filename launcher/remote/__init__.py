"""The same commands on another machine over ssh, and copying results back."""
