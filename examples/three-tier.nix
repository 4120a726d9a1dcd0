# A web, an application and a data tier in two networks. Each answers the one before it by name:
#   curl http://127.0.0.1:8088/  →  web  →  app  →  db, which counts visits on a volume.
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
    name = "db";
    labels = {
      app = "three-tier";
      tier = "db";
    };
    spec = {
      image = "tiny";
      cpu = 1;
      memory = "128M";
      networks = [ "back" ];
      volumes = [ "visits" ];
      user_data = ''
        #!/bin/sh
        # Keeps a counter on the volume and hands it out on port 5432.
        mkdir -p /etc/weft/start.d /srv/db/cgi-bin
        cat >/srv/db/cgi-bin/visits <<'CGI'
        #!/bin/sh
        echo visit >>/data/visits
        sync
        printf 'Content-Type: text/plain\r\n\r\n'
        echo "visit $(wc -l </data/visits), counted by $(hostname)"
        CGI
        cat >/etc/weft/start.d/db <<'START'
        #!/bin/sh
        # The volume is the disk that is neither the root nor the seed; a new one is made ready first.
        for disk in /sys/block/vd*; do
            device=/dev/$(basename "$disk")
            [ "$(cat "$disk/serial")" = weft-seed ] && continue
            grep -q "^$device / " /proc/mounts && continue
            [ -n "$(head -c 1048576 "$device" | tr -d '\0')" ] || mke2fs -F "$device"
            mkdir -p /data
            mount -t ext4 "$device" /data
        done
        exec httpd -f -p 5432 -h /srv/db
        START
        chmod +x /srv/db/cgi-bin/visits /etc/weft/start.d/db
      '';
    };
  }
  {
    kind = "vm";
    name = "app";
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
        for try in 1 2 3 4 5 6 7 8; do
            answer=$(timeout 5 wget -q -O - http://db:5432/cgi-bin/visits) && break
            answer="the data tier doesn't answer"
            sleep 1
        done
        printf 'Content-Type: text/plain\r\n\r\n'
        echo "$answer, told by $(hostname)"
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
    name = "web";
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
        for try in 1 2 3 4 5 6 7 8; do
            answer=$(timeout 15 wget -q -O - http://app:8080/cgi-bin/sentence) && break
            answer="the application tier doesn't answer"
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
