"""`livevalue serve`: values over HTTP, updates as server-sent events, one console page.

A process of its own beside the workers: it reads what any reader may read (documents in Redis,
the topic `scores`) and writes nothing. Only `livevalue.commands.serve` imports this package.

    app.py       the endpoints, and what each error says
    updates.py   one Kafka consumer, broadcast to every client
    security.py  token, hosts, headers
    server.py    the socket, signals, the end
    static/      the console and the page of the interface: plain JavaScript, no build
"""
