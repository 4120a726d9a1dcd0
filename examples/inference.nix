# A model that was trained elsewhere, asked near whoever asks, on a node with a GPU of 8 GB at least; where there is none, weft says so,
# and prepares the function once one joins.
#   cd examples
#   weft function create ml-inference --config inference.nix --memory 4096M --constraint "gpu.memory>=8GB" \
#     --placement-strategy network-proximity
#   weft function invoke ml-inference --data '{"features": [5.1, 3.5, 1.4, 0.2]}'
{
  kind = "function";
  labels.app = "models";
  spec = {
    code = "./functions/inference";
    handler = "app.handler";
    isolation = "process";
    timeout = "20s";
    description = "Which iris it is, by its measures";
  };
}
