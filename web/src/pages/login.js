// Signing in: a password, a token, or the provider that the fabric trusts.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { keepPageKey, request } from '../api.js';
import { begin } from '../state.js';
import { ProblemBox } from '../ui/parts.js';

const BEGUN = 'weft-login'; // a login at the provider, while the browser is there
const LEAVING = Symbol('the browser goes to the provider');
const send = async (body) => {
  const answer = await request('POST', '/v1/session', body);
  if (answer.page_key) keepPageKey(answer.page_key);
  return answer;
};

export function Login() {
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const [byToken, setByToken] = useState(false);
  const attempt = async (work) => {
    setBusy(true);
    setError(null);
    try { if (await work() !== LEAVING) await begin(); } catch (problem) { setError(problem); } finally { setBusy(false); }
  };
  const onSubmit = (event) => {
    event.preventDefault();
    const given = new FormData(event.target);
    attempt(() => send(byToken ? { token: given.get('token') } : { user: given.get('user'), password: given.get('password') }));
  };
  useEffect(() => {
    document.title = 'Sign in · weft';
    const back = new URLSearchParams(location.search); // from the provider
    if (!back.has('code')) return;
    const begun = JSON.parse(sessionStorage.getItem(BEGUN) ?? '{}');
    sessionStorage.removeItem(BEGUN);
    history.replaceState(null, '', `/${location.hash}`);
    if (begun.state !== back.get('state')) setError({ message: 'this login was begun in another tab', hint: 'begin it again here' });
    else attempt(() => send({ session: begun.session, code: back.get('code') }));
  }, []);
  const provider = () => attempt(async () => {
    const { url, session, state } = await send({ oidc: 'browser', redirect: `${location.origin}/` });
    sessionStorage.setItem(BEGUN, JSON.stringify({ session, state })); // sealed, and worth nothing without the provider's code
    location.assign(url);
    return LEAVING;
  });
  return html`<main class="gate"><form onSubmit=${onSubmit}>
    <h1>weft</h1>
    <p class="soft">Sign in to see and run what is yours.</p>
    ${byToken ? html`<label class="field">Token<input name="token" type="password" autocomplete="off" required placeholder="weft_…" /><small>It is only used to make this session; the page doesn’t keep it.</small></label>`
        : html`<label class="field">User<input name="user" autocomplete="username" required autofocus /></label>
          <label class="field">Password<input name="password" type="password" autocomplete="current-password" required /></label>`}
    <${ProblemBox} error=${error} />
    <div class="row"><button class="main-action" disabled=${busy}>Sign in</button>
      <button type="button" class="plain" onClick=${provider}>With the provider</button>
      <button type="button" class="plain" onClick=${() => setByToken(!byToken)}>${byToken ? 'With a password' : 'With a token'}</button></div>
    <p class="soft" style=${{ marginTop: '16px' }}>On your own machine, <code>weft dashboard</code> opens this page with your login.</p>
  </form></main>`;
}
