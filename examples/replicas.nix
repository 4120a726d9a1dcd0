# Two replicas that never share a node, kept level over zones as soon as nodes have some (weft label node/n1 zone=a), and a
# cache that lies where another tool of the shop lies:
#   weft apply -f examples/replicas.nix && weft vm list
let
  vm = name: wish: {
    kind = "vm";
    inherit name;
    labels.app = "replicas";
    spec = { image = "tiny"; cpu = 0.5; memory = "128M"; } // wish;
  };
  replica = { anti_affinity_groups = [ "api" ]; spread = [ "zone:preferred" ]; };
  tool = { affinity_groups = [ "shop" ]; };
in
[
  (vm "api-1" replica)
  (vm "api-2" replica)
  (vm "basket" tool)
  (vm "cache" tool)
]
