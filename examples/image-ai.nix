# What a picture is like: how bright, how much contrast.
#   cd examples
#   weft function create image-ai --config image-ai.nix --memory 2048M --timeout 60s \
#     --placement-strategy best-fit,data-locality --prefer "gpu=available" --max-concurrent 50
#   weft function invoke image-ai --data '{"width": 2, "height": 2, "gray": "AECA/w=="}'
{
  kind = "function";
  labels.app = "pictures";
  spec = {
    code = "./functions/image-ai";
    runtime = "python3.11";
    handler = "app.handler";
    isolation = "process";
    env.BINS = "4";
  };
}
