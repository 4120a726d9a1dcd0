# Whether a sensor's reading needs somebody's look; small and quick, at the edge if there is one (weft label node/n1 location=edge).
#   cd examples
#   weft function create iot-handler --config iot.nix --memory 64M --timeout 5s --placement-strategy network-proximity \
#     --prefer "location=edge"
#   weft function set iot-handler --topics weft/default/+/event,weft/default/+/reported/temperature   # devices invoke it, too
#   weft function invoke iot-handler --data '{"sensor": "boiler-3", "celsius": 91.5}'
{
  kind = "function";
  labels.app = "sensors";
  spec = {
    code = "./functions/iot";
    handler = "app.handler";
    isolation = "process";
    cpu = "250m";
    scratch = "16M";
    max_concurrent = 200;
    env.LIMIT = "85";
  };
}
