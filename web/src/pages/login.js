// Signing in: a password, a token, or the provider that the fabric trusts.
import { useEffect, useState } from 'preact/hooks';
import { html } from '../html.js';
import { request } from '../api.js';
import { begin } from '../state.js';
import { ProblemBox } from '../ui/parts.js';

const send = (body) => request('POST', '/v1/session', body);

export function Login() {
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const [byToken, setByToken] = useState(false);
  const [code, setCode] = useState(null); // of a login at the provider that has begun
  const attempt = async (work) => {
    setBusy(true);
    setError(null);
    try { await work(); await begin(); } catch (problem) { setError(problem); } finally { setBusy(false); }
  };
  const onSubmit = (event) => {
    event.preventDefault();
    const given = new FormData(event.target);
    attempt(() => send(byToken ? { token: given.get('token') } : { user: given.get('user'), password: given.get('password') }));
  };
  useEffect(() => { document.title = 'Sign in · weft'; }, []);
  const provider = () => attempt(async () => {
    const begun = await send({ oidc: true });
    setCode(begun);
    open(begun.url ?? begun.verification_uri, '_blank', 'noopener');
    throw Object.assign(new Error('sign in at the provider, in the tab that has opened, then come back'), { hint: '' });
  });
  const finish = (event) => {
    event.preventDefault();
    attempt(() => send({ session: code.session, code: new FormData(event.target).get('code') }));
  };
  return html`<main class="gate"><form onSubmit=${code ? finish : onSubmit}>
    <h1>weft</h1>
    <p class="soft">Sign in to see and run what is yours.</p>
    ${code ? html`<label class="field">Code from the provider<input name="code" autocomplete="one-time-code" required /></label>`
      : byToken ? html`<label class="field">Token<input name="token" type="password" autocomplete="off" required placeholder="weft_…" /><small>It is only used to make this session; the page doesn’t keep it.</small></label>`
        : html`<label class="field">User<input name="user" autocomplete="username" required autofocus /></label>
          <label class="field">Password<input name="password" type="password" autocomplete="current-password" required /></label>`}
    <${ProblemBox} error=${error} />
    <div class="row"><button class="main-action" disabled=${busy}>Sign in</button>
      <button type="button" class="plain" onClick=${provider}>With the provider</button>
      <button type="button" class="plain" onClick=${() => { setCode(null); setByToken(!byToken); }}>${byToken ? 'With a password' : 'With a token'}</button></div>
    <p class="soft" style=${{ marginTop: '16px' }}>On your own machine, <code>weft dashboard</code> opens this page with your login.</p>
  </form></main>`;
}
