// Asks the server that sent this page.
const TRIES = 30; // for a map, which waits for another one, or for answers

function headers(token) {
  return token ? { authorization: `Bearer ${token}` } : {};
}

async function values(response) {
  if (response.ok) return response.json();
  let said = {};
  try {
    said = await response.json();
  } catch {
    // not the server's own answer
  }
  const why = said.error ?? (response.statusText || `status ${response.status}`);
  throw Object.assign(new Error(why), { locked: response.status === 401, later: said.retry_after_ms });
}

export async function describe(token) {
  return values(await fetch("about", { headers: headers(token) }));
}

async function post(address, image, token, signal) {
  const form = new FormData();
  form.append("image", image, "image");
  return values(await fetch(address, { method: "POST", body: form, headers: headers(token), signal }));
}

export function ask(image, size, token, signal) {
  return post(`predict?size=${size}&top=5`, image, token, signal);
}

const WHAT = {
  attention: () => "Attention of the last layer: where it takes its information from",
  cam: (of) => `Which positions of the last layer speak for ${of}`,
};

export async function look(image, answer, token, signal, tries = TRIES) {
  try {
    const { method, of, values, picture } = await post(`map?size=${answer.size}`, image, token, signal);
    return { what: WHAT[method](of), values, picture };
  } catch (error) {
    if (!error.later || tries === 1) throw error;
    await new Promise((done) => setTimeout(done, error.later)); // the server makes one map at a time
    signal.throwIfAborted();
    return look(image, answer, token, signal, tries - 1);
  }
}
