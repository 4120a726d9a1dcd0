# For: weft vm create webapp --config examples/webapp.nix, then curl http://127.0.0.1:8089/
# Only a spec: kind, name and labels come from the command line.
{
  image = "tiny";
  cpu = 1;
  memory = "128M";
  networks = [ "default" ];
  publish = [ "8089:80" ];
  strategy = "best_fit";
  restart = "on-failure";
  user_data = ''
    #!/bin/sh
    mkdir -p /etc/weft/start.d /srv/www
    echo "<!doctype html><title>webapp</title><p>Hello from $(hostname)</p>" >/srv/www/index.html
    cat >/etc/weft/start.d/webapp <<'START'
    #!/bin/sh
    exec httpd -f -p 80 -h /srv/www
    START
    chmod +x /etc/weft/start.d/webapp
  '';
}
