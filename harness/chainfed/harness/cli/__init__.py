"""The harness's commands, one a module; each module's `command` is imported when it is called."""
