// The OIDC provider that tests log in at: node provider.mjs PORT KEY-ID [REDIRECT]. Accounts are made up by logging in with any name;
// their groups stand after a plus: ann+staff+all. It ends with its standard input.
import { generateKeyPairSync } from 'node:crypto';
import { Provider } from 'oidc-provider';

const [port, kid, ...pages] = process.argv.slice(2);
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const client = {
  client_id: 'weft',
  application_type: pages.length ? 'web' : 'native',
  token_endpoint_auth_method: 'client_secret_basic',
  client_secret: 'a secret of the test',
  redirect_uris: pages.length ? pages : ['http://127.0.0.1/callback'],
  grant_types: ['authorization_code', 'urn:ietf:params:oauth:grant-type:device_code'],
};
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [client],
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), kid, use: 'sig', alg: 'RS256' }] },
  claims: { openid: ['sub'], profile: ['name', 'preferred_username'], groups: ['groups'] },
  scopes: ['openid', 'profile', 'groups'],
  conformIdTokenClaims: false,
  cookies: { keys: ['not a secret'] },
  features: { deviceFlow: { enabled: true }, devInteractions: { enabled: true } },
  pkce: { required: () => true },
  findAccount: (_, id) => {
    const [name, ...groups] = id.split('+');
    return { accountId: id, claims: () => ({ sub: name, preferred_username: name, name: `The person ${name}`, groups }) };
  },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('ready'));
process.stdin.resume().on('end', () => process.exit(0));
