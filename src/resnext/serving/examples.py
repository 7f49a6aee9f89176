"""Files that run the server elsewhere: systemd, Docker, Docker Compose, Kubernetes, nginx.

They share the numbers of the server: 20 MB a body, 30 s to end, 1 s from alive to ready.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

Example = Literal["systemd", "docker", "compose", "kubernetes", "nginx"]
EXAMPLES: tuple[str, ...] = get_args(Example)

_END = 35  # seconds until a server that does not end is killed: a little more than it needs


def example(kind: Example, file: str) -> str:
    """A file that runs the server.

    Args:
        kind: One of `EXAMPLES`.
        file: The model file, or a catalog name.
    """
    write: dict[str, Callable[[str], str]] = {
        "systemd": _systemd,
        "docker": _docker,
        "compose": _compose,
        "kubernetes": _kubernetes,
        "nginx": _nginx,
    }
    return write[kind](file)


def _systemd(file: str) -> str:
    path = Path(file)
    model = str(path.absolute()) if path.suffix else file
    command = Path(sys.executable).with_name("resnext")
    return f"""\
# /etc/systemd/system/resnext.socket
# systemd listens, so no connection is refused while the service starts again.
# Then: systemctl daemon-reload && systemctl enable --now resnext.socket
[Unit]
Description=Socket of resnext serve

[Socket]
ListenStream=127.0.0.1:8000
Backlog=2048

[Install]
WantedBy=sockets.target

# /etc/systemd/system/resnext.service
# After a new model file: systemctl reload resnext
[Unit]
Description=resnext serve
Requires=resnext.socket
After=resnext.socket

[Service]
Type=notify
ExecStart={_unit_word(str(command))} serve {_unit_word(model)}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
TimeoutStartSec=120
TimeoutStopSec={_END}
DynamicUser=yes
CacheDirectory=resnext
Environment=RESNEXT_HOME=/var/cache/resnext
MemoryMax=2G
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
CapabilityBoundingSet=
SystemCallFilter=@system-service
SystemCallArchitectures=native
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def _docker(file: str) -> str:
    name, stem = Path(file).name, Path(file).stem
    return f"""\
# Dockerfile, beside {name}
#   docker build -t resnext-serve .
#   openssl rand -hex 32 > token.txt
#   docker run --rm -p 127.0.0.1:8000:8000 --read-only --tmpfs /tmp \\
#     -v "$PWD/token.txt:/run/secrets/token:ro" resnext-serve
FROM python:3.12-slim
RUN pip install --no-cache-dir "resnext[serve,onnx]"
# an index or a plan beside the model is used if it is copied too: {stem}.index, {stem}.plan.json
COPY [{_json_word(name)}, "/models/"]
ENV RESNEXT_HOME=/tmp/resnext
USER 65534:65534
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["python", "-c", \\
  "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["resnext", "serve", {_json_word(f"/models/{name}")}, "--host", "0.0.0.0", \\
  "--token-file", "/run/secrets/token"]
"""


def _compose(file: str) -> str:
    folder = Path(file).parent.as_posix()
    folder = folder if folder.startswith(("/", ".")) else f"./{folder}"
    return f"""\
# compose.yaml, beside the Dockerfile of `--example docker`
#   openssl rand -hex 32 > token.txt
#   docker compose up --build
services:
  resnext:
    build: .
    ports: ["127.0.0.1:8000:8000"]
    volumes: [{_json_word(f"{folder}:/models:ro")}]
    secrets: [token]
    command: [--watch]
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    mem_limit: 2g
    stop_grace_period: {_END}s
    restart: unless-stopped
secrets:
  token:
    file: ./token.txt
"""


def _kubernetes(file: str) -> str:
    return f"""\
# resnext.yaml, with the image of `--example docker`, pushed as IMAGE
#   kubectl create secret generic resnext-token --from-literal=token="$(openssl rand -hex 32)"
#   kubectl apply -f resnext.yaml
apiVersion: apps/v1
kind: Deployment
metadata:
  name: resnext
  labels: {{app: resnext}}
spec:
  replicas: 2
  selector:
    matchLabels: {{app: resnext}}
  strategy:
    rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata:
      labels: {{app: resnext}}
      annotations: {{prometheus.io/port: "8000"}}
    spec:
      terminationGracePeriodSeconds: {_END + 5}
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 65534
        seccompProfile: {{type: RuntimeDefault}}
      containers:
        - name: resnext
          image: IMAGE
          # the names by which other pods reach it
          args: [--allow-host, resnext, --allow-host, resnext.default.svc.cluster.local]
          ports:
            - {{name: http, containerPort: 8000}}
          startupProbe:
            httpGet: {{path: /readyz, port: http}}
            periodSeconds: 2
            failureThreshold: 60
          readinessProbe:
            httpGet: {{path: /readyz, port: http}}
            periodSeconds: 2
          livenessProbe:
            httpGet: {{path: /healthz, port: http}}
            timeoutSeconds: 3
          lifecycle:
            preStop:  # until no more requests are sent here
              exec: {{command: [sleep, "5"]}}
          resources:
            requests: {{cpu: "2", memory: 1Gi}}
            limits: {{memory: 2Gi}}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{drop: [ALL]}}
          volumeMounts:
            - {{name: token, mountPath: /run/secrets, readOnly: true}}
            - {{name: cache, mountPath: /tmp}}
      volumes:
        - name: token
          secret: {{secretName: resnext-token}}
        - name: cache
          emptyDir: {{}}
---
apiVersion: v1
kind: Service
metadata:
  name: resnext
spec:
  selector: {{app: resnext}}
  ports:
    - {{name: http, port: 80, targetPort: http}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: resnext
spec:
  minAvailable: 1
  selector:
    matchLabels: {{app: resnext}}
"""


def _nginx(file: str) -> str:
    return f"""\
# /etc/nginx/conf.d/resnext.conf; replace photos.example.org, also in the command:
#   resnext serve {shlex.quote(file)} --allow-host photos.example.org
# Everybody who reaches nginx can use it. With RESNEXT_TOKEN set, only those with the token.
upstream resnext {{
    server 127.0.0.1:8000;
    keepalive 16;
}}

limit_req_zone $binary_remote_addr zone=resnext:10m rate=20r/s;
limit_conn_zone $binary_remote_addr zone=resnext_connections:10m;

server {{
    listen 443 ssl;
    server_name photos.example.org;
    ssl_certificate /etc/ssl/certs/photos.example.org.pem;
    ssl_certificate_key /etc/ssl/private/photos.example.org.key;

    client_max_body_size 20m;
    client_header_timeout 10s;
    client_body_timeout 10s;
    limit_req zone=resnext burst=40 nodelay;
    limit_req_status 429;
    limit_conn resnext_connections 20;

    location / {{
        proxy_pass http://resnext;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_read_timeout {_END}s;
        proxy_next_upstream off;  # a request that was refused is for the client to repeat
    }}

    location = /metrics {{  # Prometheus asks the server itself
        deny all;
    }}
}}
"""


def _json_word(text: str) -> str:
    """Text in double quotes, for JSON and YAML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unit_word(text: str) -> str:
    """A word of a command in a unit file."""
    text = text.replace("%", "%%").replace("$", "$$")
    return text if re.fullmatch(r"[\w./@%$+:,=-]+", text) else _json_word(text)
