# For: weft vm create database --config examples/postgres.nix
# The image is weft's own little one, so that this starts anywhere: something listens on PostgreSQL's port and answers.
# With an image that has PostgreSQL in it, change `image` and leave `user_data` out.
{
  kind = "vm";
  name = "postgres";
  labels = {
    app = "postgres";
    tier = "db";
  };
  spec = {
    image = "tiny";
    cpu = 1;
    memory = "256M";
    disk = "1G";
    networks = [ "default" ];
    strategy = "least_loaded";
    restart = "always";
    grace = "30s";
    user_data = ''
      #!/bin/sh
      mkdir -p /etc/weft/start.d
      cat >/etc/weft/start.d/postgres <<'START'
      #!/bin/sh
      exec nc -ll -p 5432 -e echo "this is $(hostname)"
      START
      chmod +x /etc/weft/start.d/postgres
    '';
  };
}
