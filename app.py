"""What gunicorn and flask load. Run as a script it becomes `chatapp serve`: one start path for both."""

import os
import sys

if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "chatapp.cli", "serve", *sys.argv[1:]])

from chatapp import create_app

app = create_app()
