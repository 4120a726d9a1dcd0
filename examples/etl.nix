# Sums up rows of CSV where the raw data lies: a node that declares ceph-pool:raw-data is chosen before others.
#   cd examples
#   weft function create etl-processor --config etl.nix --memory 8192M --placement-strategy data-locality \
#     --data-hint "ceph-pool:raw-data"
#   weft function invoke etl-processor --data '{"by": "city", "sum": "amount", "csv": "city,amount\nBonn,2\nUlm,3\nBonn,4\n"}'
{
  kind = "function";
  labels.app = "warehouse";
  spec = {
    code = "./functions/etl";
    handler = "jobs/totals.handler";
    isolation = "process";
    timeout = "15m";
    scratch = "1G";
    max_concurrent = 4;
    retries = 1;
  };
}
