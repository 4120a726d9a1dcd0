# A web, an application and a data tier in two networks: the first two are tiny, the third a Debian with a volume
# (weft image build debian-12, once). Each answers the one before it by name:
#   curl http://127.0.0.1:8088/  →  shop-web  →  shop-app  →  shop-db, which counts visits on a volume.
[
  {
    kind = "network";
    name = "front";
    spec = {
      cidr = "10.30.1.0/24";
    };
  }
  {
    kind = "network";
    name = "back";
    spec = {
      cidr = "10.30.2.0/24";
    };
  }
  {
    kind = "volume";
    name = "visits";
    spec = {
      size = "64M";
    };
  }
  {
    kind = "vm";
    name = "shop-db";
    labels = {
      app = "three-tier";
      tier = "db";
    };
    spec = {
      image = "debian-12";
      cpu = 1;
      memory = "512M";
      networks = [ "back" ];
      volumes = [ "visits" ];
      user_data = ''
        #!/bin/sh
        # Keeps a counter on the volume and hands it out on port 5432, as a service of the system.
        disk=/dev/disk/by-id/virtio-visits
        blkid $disk || mkfs.ext4 -q $disk
        mkdir -p /srv/visits
        echo "$disk /srv/visits ext4 defaults 0 2" >>/etc/fstab
        cat >/usr/local/bin/visits <<'PYTHON'
        #!/usr/bin/python3
        import os, socket
        from http.server import BaseHTTPRequestHandler, HTTPServer

        class Visits(BaseHTTPRequestHandler):
            def do_GET(self):
                with open("/srv/visits/log", "a+") as log:
                    log.write("visit\n")
                    log.flush()
                    os.fsync(log.fileno())
                    log.seek(0)
                    number = len(log.readlines())
                answer = f"visit {number}, counted by {socket.gethostname()}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        HTTPServer(("", 5432), Visits).serve_forever()
        PYTHON
        chmod +x /usr/local/bin/visits
        cat >/etc/systemd/system/visits.service <<'UNIT'
        [Unit]
        RequiresMountsFor=/srv/visits
        [Service]
        ExecStart=/usr/local/bin/visits
        Restart=on-failure
        [Install]
        WantedBy=multi-user.target
        UNIT
        systemctl daemon-reload
        systemctl enable --now visits
      '';
    };
  }
  {
    kind = "vm";
    name = "shop-app";
    labels = {
      app = "three-tier";
      tier = "app";
    };
    spec = {
      image = "tiny";
      cpu = 1;
      memory = "128M";
      networks = [ "back" "front" ];
      user_data = ''
        #!/bin/sh
        # Asks the data tier and puts it into a sentence, on port 8080.
        mkdir -p /etc/weft/start.d /srv/app/cgi-bin
        cat >/srv/app/cgi-bin/sentence <<'CGI'
        #!/bin/sh
        # Tiers come up side by side: give the next one some seconds.
        for try in 1 2 3 4 5 6 7 8 9; do
            answer=$(timeout 5 wget -q -O - http://shop-db:5432/) && break
            answer="the data tier doesn't answer"
            [ $try = 9 ] && printf 'Status: 503 Service Unavailable\r\n'
            sleep 1
        done
        printf 'Content-Type: text/plain\r\n\r\n'
        echo "$answer, served by $(hostname)"
        CGI
        cat >/etc/weft/start.d/app <<'START'
        #!/bin/sh
        exec httpd -f -p 8080 -h /srv/app
        START
        chmod +x /srv/app/cgi-bin/sentence /etc/weft/start.d/app
      '';
    };
  }
  {
    kind = "vm";
    name = "shop-web";
    labels = {
      app = "three-tier";
      tier = "web";
    };
    spec = {
      image = "tiny";
      cpu = 1;
      memory = "128M";
      networks = [ "front" ];
      publish = [ "8088:80" ];
      user_data = ''
        #!/bin/sh
        # Shows what the application tier says.
        mkdir -p /etc/weft/start.d /srv/web/cgi-bin
        cat >/srv/web/cgi-bin/index.cgi <<'CGI'
        #!/bin/sh
        # Tiers come up side by side: give the next one some seconds.
        for try in 1 2 3 4 5 6 7 8 9; do
            answer=$(timeout 15 wget -q -O - http://shop-app:8080/cgi-bin/sentence) && break
            answer="the tiers behind don't answer yet"
            [ $try = 9 ] && printf 'Status: 503 Service Unavailable\r\n'
            sleep 1
        done
        printf 'Content-Type: text/html\r\n\r\n'
        echo "<!doctype html><title>three tiers</title><h1>Hello from $(hostname)</h1><p>$answer</p>"
        CGI
        cat >/etc/weft/start.d/web <<'START'
        #!/bin/sh
        exec httpd -f -p 80 -h /srv/web
        START
        chmod +x /srv/web/cgi-bin/index.cgi /etc/weft/start.d/web
      '';
    };
  }
]
