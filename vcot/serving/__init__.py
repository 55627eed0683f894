"""An OpenAI-compatible server of one small model, by transformers: for laptops and tests (docs/serving.md).

    model = load(store, found, scratch, …)       its encoder and weights, and what /v1/models says of it
    serve(model, host=…, port=…, …)              until SIGTERM or Ctrl-C
    deliver(store, pointer, into)                a promoted model's files, for any server

A request passes request.py (what may be asked), engine.py (one thread computes, the others wait in a queue) and
reply.py (the JSON); server.py is the HTTP around them.
"""
