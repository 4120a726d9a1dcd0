// Builds the dashboard's page: web/src → src/weft/api/dashboard/site (or the folder in argv). Names carry a hash of what they hold, each
// file has its compressed forms beside it, and two builds of the same source are the same bytes.
import * as esbuild from 'esbuild';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const site = resolve(process.argv[2] ?? join(here, '../src/weft/api/dashboard/site'));
const making = `${site}.new`;
const assets = join(making, 'assets');

rmSync(making, { recursive: true, force: true });
mkdirSync(assets, { recursive: true });
const { metafile } = await esbuild.build({
  entryPoints: ['src/app.js', 'src/style.css'],
  absWorkingDir: here, bundle: true, splitting: true, minify: true, metafile: true, legalComments: 'linked',
  format: 'esm', target: 'es2022', outdir: assets, entryNames: '[name]-[hash]', chunkNames: 'c-[hash]',
});

const names = {};
for (const [path, output] of Object.entries(metafile.outputs)) {
  const name = basename(path);
  if (output.entryPoint) names[basename(output.entryPoint)] = name;
  compress(join(assets, name));
}
const page = readFileSync(join(here, 'index.html'), 'utf8')
  .replace('{{style}}', `assets/${names['style.css']}`)
  .replace('{{script}}', `assets/${names['app.js']}`);
writeFileSync(join(making, 'index.html'), page);
compress(join(making, 'index.html'));
rmSync(site, { recursive: true, force: true });
renameSync(making, site);
console.log(`${relative(process.cwd(), site)}: ${Object.keys(metafile.outputs).length} files`);

function compress(path) {
  const bytes = readFileSync(path);
  writeFileSync(`${path}.gz`, gzipSync(bytes, { level: 9 }));
  writeFileSync(`${path}.br`, brotliCompressSync(bytes, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }));
}
