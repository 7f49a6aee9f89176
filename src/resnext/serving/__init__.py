"""`resnext serve`: a model over HTTP. Importing this package loads no torch.

run.py        `serve`: sockets, signals, start and end of the server
app.py        the routes of all modules and the middleware around them, as a Starlette application
routes.py     the routes /v1/…, health and metrics
protocol_v2.py  the routes of the Open Inference Protocol, /v2/…
pages.py      the pages: /, /docs and /openapi.json
page.html     the page at /
openapi.py    the description of all routes, for machines
schemas.py    the JSON of requests and answers, for that description
docs.py       the same for people
docs.html     its template
bodies.py     request bodies: one image, or several as multipart, in memory
guard.py      middleware: deadlines, errors, security, headers and the log line of each request
connection.py the HTTP protocol of a connection: its timers and limits
problems.py   errors as application/problem+json
service.py    what the routes call: admission, batches, replacing the model. No HTTP
admission.py  how many images and bytes are accepted, and when to retry
batcher.py    threads that decode images and compute batches, oldest first
model.py      an opened model: from images to answers
replace.py    a new version of the model file: loaded, checked, compared
metrics.py    counters and histograms for Prometheus
systemd.py    socket activation and sd_notify
ray.py        the same application behind Ray Serve: replicas on one machine or many
examples.py   files that run it elsewhere: systemd, Docker, Kubernetes, nginx
settings.py   all limits and options
"""
