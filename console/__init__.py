"""The command line. The only part of Nearstone that reads environment variables and settings.

`app` is the entry; one module for each noun holds its commands. Commands say what they did through
`output.Output` and fail by raising leaves of `storage.errors`, which `app.main` shows.
"""
