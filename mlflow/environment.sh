# Sourced by MLproject's commands, at the root: the environment of the README where no other is active.
if [ -z "${VIRTUAL_ENV:-}" ] && [ -f .venv/bin/activate ]; then
    . .venv/bin/activate
fi
