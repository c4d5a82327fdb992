// Asks the server that sent this page.
function headers(token) {
  return token ? { authorization: `Bearer ${token}` } : {};
}

async function values(response) {
  if (response.ok) return response.json();
  let why = response.statusText || `status ${response.status}`;
  try {
    why = (await response.json()).error ?? why;
  } catch {
    // not the server's own answer
  }
  throw Object.assign(new Error(why), { locked: response.status === 401 });
}

export async function describe(token) {
  return values(await fetch("about", { headers: headers(token) }));
}

export async function ask(image, size, token, signal) {
  const form = new FormData();
  form.append("image", image, "image");
  const given = { method: "POST", body: form, headers: headers(token), signal };
  return values(await fetch(`predict?size=${size}&top=5`, given));
}
