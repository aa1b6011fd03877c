"""A Flask view that checks a session and answers 204: what "nothing new" costs where Flask is asked at all."""

from flask import Flask, Response, session

app = Flask(__name__)
app.secret_key = "bench"
sessions = {}


@app.get("/sign-in")
def sign_in() -> str:
    """A session to show."""
    session["token"] = "a session's token, as long as the product's is."
    sessions[session["token"]] = 1
    return "ok"


@app.get("/changes")
def changes() -> Response:
    """Whose request it is, from memory; nothing is new."""
    return Response(status=204 if session.get("token", "") in sessions else 401)
