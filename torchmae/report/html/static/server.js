// The back end of `mae serve`: what the page needs is asked of the server that sent it.

function bytes(text) {
  const raw = atob(text);
  return Uint8Array.from(raw, (letter) => letter.charCodeAt(0));
}

function base64(values) {
  let text = "";
  for (let i = 0; i < values.length; i += 8192) {
    text += String.fromCharCode(...values.subarray(i, i + 8192));
  }
  return btoa(text);
}

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("mae serve does not answer: was it ended?");
  }
  const content = await reply.json();
  if (!reply.ok) throw new Error(content.error);
  return content;
}

/** What the page runs on; `browser.js` has the same functions. */
export async function open() {
  const about = await ask("about");
  return {
    about,
    where: "Images stay on this machine: they go to the mae serve that runs on it.",

    /** An image file: its pixels as the model gets them, and what does not depend on a mask. */
    async image(file) {
      if (file.size > about.max_upload) {
        throw new Error(`more than ${about.max_upload / 1e6} MB: start mae serve with --max-upload`);
      }
      const found = await ask("image", { method: "POST", body: file });
      const tokens = new Float32Array(bytes(found.tokens).buffer);
      return { ...found, pixels: bytes(found.pixels), tokens };
    },

    /** The hidden patches of a mask. */
    async mask(masking, ratio, seed) {
      return (await ask(`mask?${new URLSearchParams({ masking, ratio, seed })}`)).hidden;
    },

    /** What the encoder sees, and what the model makes of it. */
    async reconstruct(pixels, hidden, trueStatistics) {
      const body = { pixels: base64(pixels), hidden, true_statistics: trueStatistics };
      const made = await ask("reconstruct", { method: "POST", body: JSON.stringify(body) });
      return { seen: bytes(made.seen), reconstruction: bytes(made.reconstruction), ms: made.ms };
    },
  };
}
