# Two replicas that never share a node, kept level over zones as soon as nodes have some (weft label node/n1 zone=a), and a
# cache that lies where another tool of the shop lies:
#   weft apply -f examples/replicas.nix && weft vm list
[
  {
    kind = "vm";
    name = "api-1";
    labels = {
      app = "replicas";
    };
    spec = {
      image = "tiny";
      cpu = 0.5;
      memory = "128M";
      anti_affinity_groups = [ "api" ];
      spread = [ "zone:preferred" ];
    };
  }
  {
    kind = "vm";
    name = "api-2";
    labels = {
      app = "replicas";
    };
    spec = {
      image = "tiny";
      cpu = 0.5;
      memory = "128M";
      anti_affinity_groups = [ "api" ];
      spread = [ "zone:preferred" ];
    };
  }
  {
    kind = "vm";
    name = "basket";
    labels = {
      app = "replicas";
    };
    spec = {
      image = "tiny";
      cpu = 0.5;
      memory = "128M";
      affinity_groups = [ "shop" ];
    };
  }
  {
    kind = "vm";
    name = "cache";
    labels = {
      app = "replicas";
    };
    spec = {
      image = "tiny";
      cpu = 0.5;
      memory = "128M";
      affinity_groups = [ "shop" ];
    };
  }
]
