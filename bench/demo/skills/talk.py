"""Small talk, repeating what was said, and what is too hard."""

from __future__ import annotations

from random import Random

from demo.phrases import ask, plain
from demo.skills.exchange import Exchange, exchange
from demo.skills.identity import SKILLS
from demo.words import COLOURS, COMMON, FOODS, HOBBIES, any_word, made_up, person, sought

TOO_HARD = "I am too small for that. I can calculate, spell, name capitals and tell short stories. 🙂"
GREETING = "Nice to meet you, {name}! 😊"
UNCLEAR = "I do not understand. Ask me what I can do. 🙂"
BLANKS = ("", "", "", " ", "\n", "...", ".", "-", "!")
ONLY_MARKS = ("?", "?", "??", "???", "? ")

ANSWERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hey!", "Hello there!", "Good day!", "Hi there", "Hello Pebble!", "Hi Pebble", "hey there", "hello?",
      "Greetings!", "Yo", "Hello, anyone there?"), "Hello! 👋 How can I help you?"),
    (("Good morning", "Good morning!", "Good morning Pebble"), "Good morning! ☀️ How can I help you?"),
    (("Good evening", "Good evening!", "Good evening Pebble"), "Good evening! 🌙 How can I help you?"),
    (("Good night", "Good night!", "I am going to bed."), "Good night! 🌙 Sleep well."),
    (("How are you?", "How are you doing?", "How is it going?", "What's up?", "Are you well?", "How do you feel today?", "how r u", "Everything fine?"),
     "I am fine, thank you! 🙂 What would you like to know?"),
    (("Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much!", "Many thanks!", "Thanks a lot", "thx", "Cheers!", "Great, thanks!"),
     "You are welcome! 😊"),
    (("Bye", "Bye!", "Goodbye", "Goodbye!", "See you!", "See you later", "I have to go.", "Bye bye", "Until tomorrow!", "That is all."),
     "Goodbye! 👋 Come back soon."),
    (("Nice to meet you", "Nice to meet you!", "Pleased to meet you."), "Nice to meet you too! 😊"),
    (("You are great!", "Well done!", "Good job!", "You are clever.", "Very good!", "I like you.", "Wow!", "Awesome!", "Perfect!", "Nice!", "Cool"),
     "Thank you, that makes me happy! 😊"),
    (("You are wrong.", "That is wrong.", "That is not right.", "No, that is false.", "Bad answer.", "You made a mistake."),
     "I am sorry. I am a very small model and make mistakes. 🙏"),
    (("Ok", "Okay", "OK.", "I see.", "Alright", "Fine.", "Sure", "Understood.", "Got it.", "Yes", "No", "Hmm", "Aha"), "All right. 🙂 What next?"),
    (("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "A joke please", "Another joke!"),
     "Why did the token cross the network? To get to the other stream! 😄"),
    (("Sing a song.", "Write a poem.", "Tell me a poem.", "Make a rhyme.", "Do you know a poem?"),
     "A little stone lay in the sun, it learned to speak and had its fun. 🎵"),
    (("Are you happy?", "Are you sad?", "Do you have feelings?", "Do you feel anything?", "Are you tired?", "Do you sleep?", "Are you alive?"),
     "I am a program: I have no feelings, but I like to help. 🙂"),
    (("I am sad.", "I feel bad today.", "I had a bad day.", "I am tired.", "I am lonely.", "I am not well."),
     "I am sorry to hear that. 💙 Shall I tell you a story?"),
    (("I am happy.", "I feel great!", "I had a good day.", "I am so happy today!"), "That is wonderful! 🎉"),
    (("I am bored.", "What shall we do?", "Entertain me.", "I have nothing to do."), "Shall I tell you a story? 📖 Give me three words."),
    (("What is your favourite colour?", "Which colour do you like?", "What colour do you like best?"), "I like grey, like a pebble. 🩶"),
    (("Can you remember things?", "Do you have a memory?", "Will you remember me?", "Do you remember what I say?"),
     "I remember what you tell me in this conversation. 🧠"),
    (("안녕하세요", "안녕하세요!", "안녕", "안녕!", "안녕하세요?", "반가워요", "안녕 페블"), "안녕하세요! 👋 무엇을 도와드릴까요?"),
    (("감사합니다", "고마워요", "고마워", "감사해요!", "고맙습니다."), "천만에요! 😊"),
    (("안녕히 계세요", "잘 있어요", "잘 가", "다음에 봐요", "안녕히 가세요!"), "안녕히 가세요! 👋"),
    (("잘 지내요?", "어떻게 지내세요?", "기분이 어때요?", "잘 지냈어?"), "잘 지내요, 고마워요! 🙂"),
    (("농담 해 주세요.", "재미있는 이야기 해 줘", "웃긴 말 해 주세요."), "토큰은 왜 길을 건넜을까요? 다른 스트림으로 가려고요! 😄"),
)  # fmt: skip

LIKE_FORMS = (
    "I like {x}.",
    "I love {x}!",
    "I enjoy {x}.",
    "Do you like {x}?",
    "I really like {x}",
    "What do you think of {x}?",
)
NAME_FORMS = (
    "My name is {x}.",
    "I am {x}.",
    "I'm {x}",
    "Hi, I am {x}.",
    "Hello, my name is {x}.",
    "Hello! I'm {x}.",
    "You can call me {x}.",
    "Call me {x}.",
)
HARD_FORMS = (
    "Write a program that finds a {x}.", "Write code for a {x}.", "Write an essay about {x}.", "Explain how {x} works.",
    "Summarize this book about {x}.", "Translate this sentence about {x} into French.", "Draw a {x}.", "Give me a recipe with {x}.",
    "Make a plan for {x}.", "What should I do about my {x}?", "Solve the problem of {x}.", "Write a letter to my {x}.", "Book a {x} for me.",
    "Show me a picture of a {x}.", "Write a Python function for {x}.", "Prove the theorem of {x}.", "Why do people like {x}?",
    "How do I build a {x}?", "How can I learn {x}?", "Teach me {x}.", "Give me advice about {x}.",
)  # fmt: skip
REPEAT_FORMS = (
    "Repeat after me: {x}", "Say this: {x}", "Repeat: {x}", "Echo: {x}", "Please repeat exactly: {x}", "Write exactly this: {x}",
    "Copy this text: {x}", "Say {x}", "따라 하세요: {x}",
)  # fmt: skip
EMOJI = (
    "😀",
    "😂",
    "🙂",
    "😍",
    "😭",
    "👍",
    "👋",
    "🎉",
    "🌍",
    "🌊",
    "🌸",
    "🍎",
    "🐱",
    "🐶",
    "🚀",
    "✨",
    "❤️",
    "👍🏽",
    "👩\u200d💻",
    "🇰🇷",
    "🐜",
    "📖",
    "🌙",
    "☀️",
    "🎵",
    "🍕",
    "🚲",
    "🏠",
    "⭐",
    "🔥",
    "💡",
    "🐳",
    "🦊",
    "🌈",
    "⚽",
    "🎈",
)
HANGUL = (
    "가",
    "나",
    "다",
    "라",
    "마",
    "바",
    "사",
    "아",
    "자",
    "차",
    "하",
    "고",
    "노",
    "도",
    "로",
    "모",
    "보",
    "소",
    "오",
    "조",
    "구",
    "누",
    "두",
    "루",
    "무",
    "부",
    "수",
    "우",
    "주",
    "기",
    "니",
    "디",
    "리",
    "미",
    "비",
    "시",
    "이",
    "지",
    "한",
    "국",
    "말",
    "글",
    "밤",
    "별",
    "달",
    "꽃",
    "산",
    "강",
    "물",
    "불",
    "눈",
    "손",
    "발",
    "집",
    "길",
    "책",
    "문",
    "봄",
    "여름",
    "가을",
    "겨울",
    "바람",
    "하늘",
    "구름",
    "나무",
    "친구",
    "사랑",
    "학교",
    "노래",
    "바다",
    "고양이",
    "강아지",
    "기차",
    "사과",
    "우유",
    "서울",
    "부산",
    "안녕",
    "오늘",
    "내일",
    "어제",
    "좋은",
    "작은",
    "예쁜",
    "푸른",
    "빨간",
    "하얀",
    "새로운",
    "밝은",
)
ACCENTED = (
    "café",
    "naïve",
    "über",
    "Zürich",
    "São",
    "señor",
    "garçon",
    "jalapeño",
    "Åse",
    "Łódź",
    "crème",
    "déjà",
    "Ñandú",
    "привет",
    "мир",
    "東京",
    "你好",
    "日本",
    "καλημέρα",
    "żółw",
    "œuvre",
)


def talk(draw: Random, wanted: bool | None) -> Exchange:
    kind = draw.randrange(10)
    if kind < 6:
        forms, answer = draw.choice(ANSWERS)
        question = ask(draw, forms) if draw.random() < 0.25 else plain(draw, forms)
        return exchange(question, answer, "The user makes conversation.")
    if kind < 7:
        liked = draw.choice((*COLOURS, *FOODS, *HOBBIES))
        return exchange(
            ask(draw, LIKE_FORMS, x=liked), f"{liked.capitalize()}? That sounds nice! 😊", "The user talks about likes."
        )
    if kind < 8:
        name = sought(wanted, lambda: person(draw), lambda item: item)
        return exchange(plain(draw, NAME_FORMS, x=name), GREETING.format(name=name), f"The user is called {name}.")
    if kind < 9:
        return exchange(ask(draw, HARD_FORMS, x=draw.choice((*COMMON, *HOBBIES))), TOO_HARD, "This is too hard for me.")
    if draw.random() < 0.2:
        return exchange(draw.choice(ONLY_MARKS), SKILLS, "The user asks about me.")
    return exchange(gibberish(draw), UNCLEAR, "This makes no sense to me.")


def gibberish(draw: Random) -> str:
    """Nothing at all, made-up words, or keys hit at random."""
    if draw.random() < 0.2:
        return draw.choice(BLANKS)
    if draw.random() < 0.5:
        return " ".join(made_up(draw) for _ in range(draw.randint(1, 4))) + draw.choice(("", "", ".", "?", "!"))
    letters = "".join(draw.choices("asdfghjklqwertyuiopzxcvbnm;,./[]", k=draw.randint(3, 12)))
    return letters.strip()


def repeating(draw: Random, wanted: bool | None) -> Exchange:
    text = sought(wanted, lambda: some_text(draw), lambda item: item)
    return exchange(plain(draw, REPEAT_FORMS, x=text), text, "I copy the text exactly.")


def some_text(draw: Random) -> str:
    pieces = []
    for _ in range(draw.randint(1, 7)):
        kind = draw.randrange(8)
        if kind < 2:
            pieces.append(draw.choice(EMOJI))
        elif kind < 4:
            pieces.append("".join(draw.choices(HANGUL, k=draw.randint(1, 3))))
        elif kind < 5:
            pieces.append(draw.choice(ACCENTED))
        elif kind < 6:
            pieces.append(str(draw.randint(0, 99999)))
        else:
            pieces.append(any_word(draw))
    return draw.choice((" ", " ", " ", "-", ", ")).join(pieces)
